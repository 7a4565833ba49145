"""Executors: where and when tasks run; what a task does is not their business."""
