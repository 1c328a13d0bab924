# Stands in for the build tree of 3D Slicer, so that this extension can be configured, built, installed and packed
# without one:  cmake -S . -B build -DSlicer_DIR=Testing/CMakeStub
# It places files as Slicer 5.12 does; unknown keywords, listed files that do not exist and missing metadata are errors.

set(Slicer_VERSION 5.12)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Pack.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-${Slicer_VERSION}/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ./${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
set(Slicer_REVISION 0)
