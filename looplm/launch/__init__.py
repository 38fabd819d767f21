"""Starting runs on machines that others own: what templates are filled with, and when they start again."""
