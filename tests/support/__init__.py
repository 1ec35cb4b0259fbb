"""What tests of every folder share: servers, calls, validators, notebooks."""
