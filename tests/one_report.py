"""Records, answers and scores of a small report."""

import numpy as np

DOCUMENTS = [
    {"id": "d0", "stage": "first", "text": "The capital of France is Paris ."},
    {"id": "d1", "stage": "first", "text": "a | pipe\nand `code` <b>"},
    {"id": "d2", "stage": "second", "prompt": "Where is Rome ?", "completion": "Italy"},
    {"id": "d3", "stage": "second", "text": "word " * 100},
]
QUERIES = [
    {"id": "q0", "prompt": "Capital of France ?", "completion": "Paris", "relevant": ["d0", "d9"]},
    {"id": "q1", "prompt": "Capital of Italy ?", "completion": "Rome"},
]
ANSWERS = [{"answer": "Paris", "correct": True, "loss": 0.25}, {"answer": "Milan", "correct": False, "loss": 3.5}]
SCORES = np.array([[2.0, 1.0], [-1.0, 4.0], [3.0, 2.0], [-2.5, 3.0]], dtype=np.float32)
