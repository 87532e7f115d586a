"""Times the hosts and the methods, in ratios measured side by side."""
