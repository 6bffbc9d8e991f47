"""Loader workers: processes that prepare batches ahead of their use.

workers           start them, take batches from them, notice that one died or hangs
tensor_ipc        how a batch travels from a worker to its rank
worker_position   which shard a worker is reading, where its rank can see it
"""
