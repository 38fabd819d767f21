"""The sections of the report, a file each: from what was found to HTML, or to nothing where nothing was measured."""
