"""The small model that the demo ships, trained from scratch on scenes.

Reading order: `architecture` (model, tokenizer, processor), `curriculum` (the recipe and its batches), `training` (the
loop), `scoring` (how good a trained model is).
"""
