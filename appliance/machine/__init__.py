"""How a machine of the appliance, a node or a gateway, is known to the control plane."""
