"""ROME's mathematics, on token ids and positions: keys, the optimised value, the update.

Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022; R-ROME: Gupta et al.,
"Rebuilding ROME", 2024. What is text, and which model takes which layer, is in ``edits/rome.py``.
"""
