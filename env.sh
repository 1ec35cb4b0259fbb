export PYTHONPATH=/tmp/wt3/server:/tmp/wt3/client
