"""German for scenes: `nouns` declines the kinds and puts them into phrases, `reading` turns German claims into English.

Rationales are parsed in English only (`illume.scenes.parsing`), so German ones are read word by word into English.
"""
