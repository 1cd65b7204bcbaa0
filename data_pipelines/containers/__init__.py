"""Recognises and reads audio files by their contents, not their names; FFmpeg is a fallback."""
