"""k-center over shards: the stages that use it, the rounds, the shards on Ray."""
