"""Texts that name nothing which the lite engine has learnt; in training they are nobody's caption.

They keep the text tower from sending every unknown word to the nearest known target. The presence test uses other
words (``HELD_OUT``), which must never be added here.
"""

from __future__ import annotations

_ORGANS = (
    "pancreas", "gallbladder", "ovary", "testis", "colon", "small intestine", "duodenum", "rectum", "humerus",
    "radius bone", "tibia", "fibula", "ankle", "shoulder", "spinal disc", "sacrum", "pelvis", "cornea", "iris",
    "inner ear", "larynx", "tongue", "parotid gland", "parathyroid", "thymus", "aorta", "vena cava", "carotid artery",
    "heart", "left ventricle", "rib", "clavicle", "skull", "muscle", "skin", "fat", "placenta", "umbilical cord",
    "elbow", "finger", "foot", "nerve", "tendon", "cerebellum", "hippocampus", "lateral ventricles", "diaphragm",
    "trachea", "spine", "nasal cavity", "sinus", "eye", "toe", "ulna", "scapula", "sternum", "peritoneum",
)  # fmt: skip
_FINDINGS = (
    "fracture", "dislocation", "hernia", "abscess", "haematoma", "stenosis", "thrombus", "calcification", "oedema",
    "pleural effusion", "pneumothorax", "ascites", "bowel obstruction", "scoliosis", "arthritis", "gallbladder polyp",
    "catheter", "pacemaker", "surgical clip", "implant", "foreign body", "stroke", "aneurysm", "cyst of the ovary",
    "pancreatic cancer", "ovarian tumor", "colon cancer", "testicular tumor", "bone metastasis", "sarcoma",
    "gallstone pancreatitis", "torn ligament", "cataract", "glaucoma", "burn",
    "dental implant", "lymphoma of the neck", "rectal cancer", "osteoporosis", "tonsillitis",
)  # fmt: skip
_OTHER = (
    "dog", "house", "tree", "bicycle", "airplane", "a person on a beach", "a bowl of fruit", "letters and numbers",
    "a bird", "guitar", "coffee cup", "mountain", "a street at night", "computer", "flower", "sky", "horse", "boat",
    "asdf qwer", "the quick brown fox", "hello", "nothing", "background", "text annotation", "ruler",
)  # fmt: skip

DISTRACTORS: tuple[str, ...] = (
    *_ORGANS,
    *(f"{organ} tumor" for organ in _ORGANS[:24]),
    *(f"an image of the {organ}" for organ in _ORGANS[::3]),
    *_FINDINGS,
    *_OTHER,
)

HELD_OUT: tuple[str, ...] = (
    "liver", "kidney", "spleen", "prostate", "uterus", "stomach", "esophagus", "urinary bladder", "thyroid nodule",
    "femur", "knee meniscus", "hip joint", "vertebral fracture", "wrist", "tooth", "mandible", "retina", "optic disc",
    "colon polyp", "skin melanoma", "coronary artery", "mitral valve", "liver tumor", "kidney stone",
    "prostate cancer", "adrenal gland", "lymph node", "fetal head", "cat", "car",
)  # fmt: skip
