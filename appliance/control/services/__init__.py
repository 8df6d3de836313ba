"""One file per noun: what a change means, in plain synchronous code inside one transaction."""
