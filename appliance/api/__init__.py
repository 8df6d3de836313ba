"""GENERATED below: `appliance.api.<area>.v1`, from `proto/` by `make proto`. Never edited by hand."""
