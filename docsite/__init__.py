"""Makes pages of the site from the sources, when it is built; nothing of them is committed."""
