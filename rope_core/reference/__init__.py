"""Style references: keys and values of another picture's own pass, their fast rotary pairs weakened."""
