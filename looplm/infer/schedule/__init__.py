"""Schedulers: which items are computed together. All of them write the same text."""
