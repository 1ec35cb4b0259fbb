"""The gRPC face: translates between the contract and the runs, and decides nothing."""
