"""A study's summary as tables and figures: terminal, Markdown, HTML."""
