"""Helpers for every step that know nothing of physiological data: atomic files, locks, checks, messages, interrupts."""
