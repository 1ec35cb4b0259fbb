"""The HTTP listener: the contract as JSON and event streams, translated to calls of the gRPC server."""
