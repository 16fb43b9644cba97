"""One file for each form in which images come; each registers what it opens (``nescio.data.source.register``)."""
