"""Sources of questions, screening, and splits."""
