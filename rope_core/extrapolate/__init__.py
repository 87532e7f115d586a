"""Beyond the trained size: rotary frequencies by published rules, and SEGA's magnitudes."""
