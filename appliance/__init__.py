"""A secure LLM appliance for a company's own GPU servers: raw text in, a served model out."""
