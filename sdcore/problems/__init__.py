"""Where questions come from, which of them are usable, and in which split they are."""
