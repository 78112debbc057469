"""Measurements that are not studies: what a choice of the implementation costs in time and memory."""
