"""Checkpoints: reading headers, indexes and provenance, fingerprints, writing atomically. Importing loads no torch."""

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.header import TensorInfo
from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.checkpoint.provenance import (
    base_for_training,
    base_of,
    read_provenance,
    software_versions,
    write_provenance,
)
from skillgraft.checkpoint.tensor_io import read_tensor
from skillgraft.checkpoint.tokenizer import tokenizer_files, tokenizer_identity
from skillgraft.checkpoint.writer import atomic_directory, check_free_space, resumable_directory
from skillgraft.support.cache import cache_home

__all__ = [
    "Layout",
    "TensorInfo",
    "atomic_directory",
    "base_for_training",
    "base_of",
    "cache_home",
    "check_free_space",
    "fingerprint_checkpoint",
    "fingerprint_file",
    "read_layout",
    "read_provenance",
    "read_tensor",
    "resumable_directory",
    "software_versions",
    "tokenizer_files",
    "tokenizer_identity",
    "write_provenance",
]
