"""The Ray actors: `environment` runs episodes, `coordinator` schedules them."""
