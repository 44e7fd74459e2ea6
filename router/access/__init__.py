"""Who may ask: virtual keys, what each may spend and how fast, and the admin key.

keys.py       a key, how it is minted and recognised
store.py      keys and spending in the ledger's database
limits.py     rates and budgets counted in this process
redis_counters.py  the same, counted for all replicas
door.py       what a request meets: recognised, admitted, settled
admin.py      /admin/keys
experiment_routes.py  /admin/experiments
"""
