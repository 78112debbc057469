"""One `ml_collections` config file per study; the part after the colon names the scale."""
