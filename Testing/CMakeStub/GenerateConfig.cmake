# Slicer writes the configuration file that extensions in C++ need to build on this one; a scripted one has nothing to say.
if(NOT PROJECT_NAME STREQUAL CMAKE_PROJECT_NAME)
  message(FATAL_ERROR "include it in the top CMakeLists.txt")
endif()
