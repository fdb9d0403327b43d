"""Language models: trained, tuned, merged and asked."""
