"""Later versions of the schema, which only the tests of upgrades have."""
