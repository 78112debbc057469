"""The one study engine: variants x seeds -> runs -> rows -> summary.json. No study is named here."""
