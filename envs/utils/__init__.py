"""Utilities that all packages share: errors, files, storage, progress, Ray sessions, images."""
