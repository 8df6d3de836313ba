"""People, applications, roles, projects: who may do what."""
