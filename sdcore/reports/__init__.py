"""Results for people: figures, printed tables, HTML pages and the viewer."""
