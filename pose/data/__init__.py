"""Where faces come from: WFLW in its two forms, and a synthetic set in the official layout."""
