"""Transports between the target's side and the draft's: in process, thread, shared memory, torch.distributed.

Each module stands alone, so that a room that needs one does not import the others.
"""
