"""Exports of other annotation tools as rows of records: their tasks, texts and judgements."""
