"""The gRPC API: translates between the contract and the runs, and decides nothing."""
