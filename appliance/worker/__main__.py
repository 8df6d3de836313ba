"""`python -m appliance.worker`: see `appliance.worker.main`."""

from appliance.worker.main import main

main()
