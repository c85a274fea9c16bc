"""Context pruning: removes sentences of a request's context that its question does not need."""
