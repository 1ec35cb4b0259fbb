"""Generate pages of the documentation from the sources when the site is built; none of them is committed."""
