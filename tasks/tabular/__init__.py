"""Tables: join, profile, encode, fit."""
