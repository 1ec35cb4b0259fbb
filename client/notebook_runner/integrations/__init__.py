"""What other programs load to execute their notebooks on a server.

Each module is named by an entry point or in a configuration, and imported only by the program that it
extends:

    papermill           an engine (group `papermill.engine`)
    jupyter_cache       an executor (group `jcache.executors`)
    jupyter_scheduler   a scheduler (`c.SchedulerApp.scheduler_class`)
    airflow             an operator, a hook and a trigger (group `apache_airflow_provider`)

They need the extra of the same name, which brings the program.
"""
