"""The small model for the three tasks `scenes`, `pairs` and `guard`, trained from scratch.

Reading order: `architecture` (model, tokenizer, processor), `texts` and `scene_texts` (what is read and written in each
task), `patches` (what is seen), `curriculum` (the recipe and its batches), `training` (the loop), `scoring` (how good a
trained model is).
"""
