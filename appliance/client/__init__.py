"""The Python SDK: how the command and internal applications call the appliance.

`connection` reaches one server as one identity and turns failed calls into `appliance.core.errors`;
`inference` asks served models; `pages` walks lists; `uploads` cuts documents and files into
messages; `profiles` keeps servers and sessions in the user's configuration folder.
"""
