"""Is this run healthy: measures, failure signs, histograms, and the monitor."""
