"""Our MONAI Label application; a server alone imports its modules, as they need MONAI Label."""
